/** Regular files of a tree that somebody else may be changing: what vanishes meanwhile is left out. */
import { opendir } from 'node:fs/promises';
import { join } from 'node:path';
import { codeOf } from '@pgcloned/process';

/** Those of the directory itself come first. Links are not followed. */
export async function* filesBelow(directory: string): AsyncGenerator<string> {
  const below: string[] = [];
  try {
    for await (const entry of await opendir(directory)) {
      if (entry.isFile()) yield join(directory, entry.name);
      else if (entry.isDirectory()) below.push(join(directory, entry.name));
    }
  } catch (error) {
    if (codeOf(error) !== 'ENOENT') throw error;
  }
  for (const one of below) yield* filesBelow(one);
}
