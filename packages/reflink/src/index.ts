/** Files that share their blocks with others. */
export { keepCopyOnWrite } from './copy-on-write.ts';
export type { FilePath } from './file-path.ts';
export { probeReflink } from './probe-reflink.ts';
export { type ReflinkOptions, reflinkFile } from './reflink-file.ts';
export { type FileToReflink, type Reflinked, reflinkFiles } from './reflink-files.ts';
export { measureSpace, type Space } from './space.ts';
