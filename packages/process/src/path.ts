/** Whether `path` is `directory` or lies below it. By their names: links and mounts are not looked at. */
export function isWithin(path: string, directory: string): boolean {
  return path === directory || path.startsWith(directory === '/' ? '/' : `${directory}/`);
}
