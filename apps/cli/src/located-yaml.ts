/**
 * YAML (and so JSON) whose mistakes are named by file, line and key.
 *
 * A value may also come from elsewhere: an environment variable, an option. Whoever puts it in says so, and a mistake in
 * it is then named by that place. Used for the configuration and for the SPEC of a clone.
 */
import { readFile } from 'node:fs/promises';
import { text as readStream } from 'node:stream/consumers';
import { CloneError, type ErrorCode } from '@pgcloned/contract';
import { codeOf } from '@pgcloned/process';
import { type Document, isMap, isNode, isScalar, LineCounter, parseDocument } from 'yaml';
import type * as z from 'zod';

/** Far more than any configuration needs; a wrong file given by mistake is not swallowed whole. */
const FILE_BYTES_MAX = 1024 * 1024;

type Path = readonly PropertyKey[];

export interface LocatedYaml {
  /** The file, or `standard input`. */
  readonly name: string;
  /** What it says: a plain object of plain values. It belongs to the caller. */
  readonly content: Record<string, unknown>;
  /** `FILE:LINE` of the value at `path`, or of the nearest thing above it. */
  readonly locate: (path: Path) => string;
}

/**
 * @param file A path, or `-` for standard input.
 * @throws {CloneError} with `code` if the file cannot be read or is not a YAML mapping.
 */
export async function readYaml(file: string, code: ErrorCode): Promise<LocatedYaml> {
  const name = file === '-' ? 'standard input' : file;
  return parseYaml(name, await readText(file, name, code), code);
}

async function readText(file: string, name: string, code: ErrorCode): Promise<string> {
  let text: string;
  try {
    text = file === '-' ? await readStream(process.stdin) : await readFile(file, 'utf8');
  } catch (cause) {
    const reason = codeOf(cause) ?? 'error';
    throw new CloneError(code, `cannot read ${name}: ${READ_FAILURES[reason] ?? reason}`, {
      facts: { file: name },
      cause,
    });
  }
  if (text.length <= FILE_BYTES_MAX) return text;
  throw new CloneError(code, `${name} is too large`, {
    facts: { file: name, bytes: text.length, bytesMax: FILE_BYTES_MAX },
  });
}

const READ_FAILURES: Readonly<Record<string, string>> = {
  ENOENT: 'there is no such file',
  EACCES: 'permission denied',
  EISDIR: 'it is a directory',
};

export function parseYaml(name: string, text: string, code: ErrorCode): LocatedYaml {
  const lineCounter = new LineCounter();
  const document = parseDocument(text, { lineCounter });
  const [mistake] = [...document.errors, ...document.warnings];
  if (mistake !== undefined) {
    const line = lineCounter.linePos(mistake.pos[0]).line;
    const [what = ''] = mistake.message.split(/ at line \d+|\n/);
    throw new CloneError(code, `${name}:${String(line)}: ${lowerFirst(what)}`, {
      facts: { file: name, line },
      hint: 'The file has to be YAML or JSON.',
    });
  }
  // An empty file is an empty mapping; toJS refuses documents that grow by aliases.
  const content: unknown = document.toJS() ?? {};
  if (typeof content !== 'object' || content === null || Array.isArray(content)) {
    throw new CloneError(code, `${name} does not hold keys and values`, { facts: { file: name } });
  }
  return {
    name,
    content: content as Record<string, unknown>,
    locate: (path) => {
      const offset = offsetOf(document, path);
      return offset === null ? name : `${name}:${String(lineCounter.linePos(offset).line)}`;
    },
  };
}

/** Where the key at the end of `path` stands; for what is missing, the key above it. */
function offsetOf(document: Document, path: Path): number | null {
  for (let length = path.length; length > 0; length--) {
    const parent = document.getIn(path.slice(0, length - 1), true);
    const last = path[length - 1];
    if (isMap(parent)) {
      const pair = parent.items.find(({ key }) => isScalar(key) && String(key.value) === last);
      if (pair !== undefined && isNode(pair.key) && pair.key.range) return pair.key.range[0];
      continue;
    }
    const node = document.getIn(path.slice(0, length), true);
    if (isNode(node) && node.range) return node.range[0];
  }
  return null;
}

export interface Mistake {
  readonly path: Path;
  readonly problem: string;
}

/**
 * What is wrong with `content` by `schema`, flattened: one entry per key, unions narrowed to the branch that fits best.
 */
export function mistakesOf(error: z.core.$ZodError): readonly Mistake[] {
  return error.issues.flatMap((issue) => mistakesOfIssue(issue, []));
}

function mistakesOfIssue(issue: z.core.$ZodIssue, above: Path): readonly Mistake[] {
  const path = [...above, ...issue.path];
  switch (issue.code) {
    case 'unrecognized_keys':
      return issue.keys.map((key) => ({ path: [...path, key], problem: 'unknown key' }));
    case 'invalid_key':
      return [{ path, problem: issue.issues[0]?.message ?? issue.message }];
    case 'invalid_union': {
      const [closest] = issue.errors.toSorted((a, b) => a.length - b.length);
      if (closest === undefined || closest.length === 0) {
        return [{ path, problem: lowerFirst(issue.message) }];
      }
      return closest.flatMap((inner) => mistakesOfIssue(inner, path));
    }
    default:
      return [{ path, problem: wordsOf(issue.message) }];
  }
}

/**
 * Names the place of a value: where it was put in from, or its line.
 *
 * @param origins By the dotted path of the value that was put in; what lies below it came with it.
 */
export function locateWithOrigins(
  yaml: LocatedYaml,
  origins: ReadonlyMap<string, string>,
): (path: Path) => string {
  return (path) => {
    for (let length = path.length; length > 0; length--) {
      const origin = origins.get(path.slice(0, length).map(String).join('.'));
      if (origin !== undefined) return origin;
    }
    return yaml.locate(path);
  };
}

function wordsOf(message: string): string {
  const words = message.replace(/^Invalid input: /, '');
  return words.endsWith('received undefined') ? 'is missing' : lowerFirst(words);
}

function lowerFirst(text: string): string {
  return text.slice(0, 1).toLowerCase() + text.slice(1);
}

/**
 * The error for mistakes: the first is the message, the rest are facts.
 *
 * @param locate The place to name for a path: a file and line, a variable, an option.
 */
export function mistakesError(
  code: ErrorCode,
  mistakes: readonly Mistake[],
  { locate, hint }: { readonly locate: (path: Path) => string; readonly hint: string },
): CloneError {
  const said = mistakes.map(({ path, problem }) => {
    const key = path.map(String).join('.');
    return `${locate(path)}: ${key === '' ? '' : `${key}: `}${problem}`;
  });
  const [first = 'not valid', ...others] = said;
  return new CloneError(code, first, {
    ...(others.length > 0 && { facts: { 'and also': others.join('; ') } }),
    hint,
  });
}
