/**
 * A thread that makes files which share their blocks, in one go each: through the event loop every call would cost more
 * than it takes.
 *
 * In JavaScript, since to strip types would cost each thread more than the rest of its start.
 */
import { constants, copyFileSync, lstatSync, utimesSync } from 'node:fs';
import { parentPort } from 'node:worker_threads';

const { COPYFILE_EXCL, COPYFILE_FICLONE_FORCE } = constants;

/** As `reflink-file.ts` has it. */
const seconds = (ms) => Math.round(ms * 1_000) / 1e6 + 5e-7;

/** Its size; null: it was not made, and whoever asked tries again to learn why. */
function reflink({ from, to }) {
  try {
    const source = Buffer.from(from, 'latin1');
    const target = Buffer.from(to, 'latin1');
    const status = lstatSync(source);
    if (!status.isFile()) return null;
    copyFileSync(source, target, COPYFILE_FICLONE_FORCE | COPYFILE_EXCL);
    utimesSync(target, seconds(status.atimeMs), seconds(status.mtimeMs));
    return status.size;
  } catch {
    return null;
  }
}

parentPort.on('message', (files) => {
  parentPort.postMessage(files.map(reflink));
});
