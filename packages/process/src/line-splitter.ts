/**
 * Bytes of a stream into lines.
 *
 * Node's readline is not used: it also breaks lines at U+2028, which is legal in a file name, and keeps a line without
 * an end in memory however long it grows.
 */
import { StringDecoder } from 'node:string_decoder';

/** A path has at most 4096 bytes; what is longer than this is no message for us and is cut into pieces. */
const LINE_CHARS_MAX = 65_536;

export interface LineSplitter {
  readonly push: (chunk: Buffer) => void;
  /** Releases a last line that has no end. */
  readonly end: () => void;
}

/** Calls `onLine` for each line as soon as its end has arrived: a line feed, a carriage return, or both. */
export function splitLines(
  encoding: 'utf8' | 'latin1',
  onLine: (line: string) => void,
): LineSplitter {
  const decoder = new StringDecoder(encoding);
  let rest = '';
  let endedByReturn = false;
  const release = (charsMin: number) => {
    while (rest.length >= charsMin) {
      onLine(rest.slice(0, LINE_CHARS_MAX));
      rest = rest.slice(LINE_CHARS_MAX);
    }
  };
  return {
    push: (chunk) => {
      let text = decoder.write(chunk);
      if (text === '') return;
      // Its carriage return ended the line already.
      if (endedByReturn && text.startsWith('\n')) text = text.slice(1);
      endedByReturn = text.endsWith('\r');
      const lines = (rest + text).split(/\r\n|\n|\r/);
      rest = lines.pop() ?? '';
      for (const line of lines) onLine(line);
      release(LINE_CHARS_MAX);
    },
    end: () => {
      rest += decoder.end();
      release(1);
    },
  };
}
