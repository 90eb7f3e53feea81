/**
 * Brings the records of running clones to Redis, at our own pace.
 *
 * Of each clone the latest record wins, one write is on its way at a time, and there are at most two per second however
 * often it changes. With Redis away the write waits; whatever came in the meantime follows. Log lines travel with the
 * records, in a bounded buffer. Nothing here ever fails a run: it goes on, and its record catches up.
 */
import {
  type Clone,
  hasEnded,
  hasFiles,
  type LogLine,
  type TransferLimits,
} from '@pgcloned/contract';
import type { Fence, RecordToWrite, WriteAnswer } from './scripts.ts';
import { directoriesOf } from './stored-clone.ts';

const INTERVAL_MS = 500;

/** Redis answered with an error (out of memory, read-only): somebody has to mend that, we ask now and then. */
const RETRY_MS = 2_000;

/** The stream keeps no more either. */
const LINES_MAX = 1_000;
const TEXT_LENGTH_MAX = 4_000;

/** `stored`; `refused`: somebody else owns the record; `unavailable`: closed before Redis answered. */
export type PublishOutcome = 'stored' | 'refused' | 'unavailable';

export interface RecordPublisher {
  readonly publish: (clone: Clone, fence: Fence) => void;
  readonly confirm: (clone: Clone, fence: Fence) => Promise<PublishOutcome>;
  readonly appendLog: (id: string, line: LogLine) => void;
  /** Writes every record again, whether it has changed or not: Redis may have lost it. */
  readonly repeat: () => void;
  /** Nobody waits any longer after this. */
  readonly close: () => void;
}

interface Publication {
  clone: Clone;
  fence: Fence;
  /** Counts what is to be written; `written` follows it. */
  revision: number;
  written: number;
  lines: string[];
  pumping: boolean;
  waiters: { readonly revision: number; readonly settle: (outcome: PublishOutcome) => void }[];
  /** Ends the pause before the next write. */
  hurry: () => void;
}

export function startRecordPublisher(o: {
  readonly write: (
    record: RecordToWrite,
    fence: Fence,
    lines: readonly string[],
  ) => Promise<WriteAnswer>;
  readonly onCancelRequested: (id: string) => void;
  readonly onTransferWished: (id: string, wish: TransferLimits) => void;
  readonly onFenceLost: (id: string) => void;
  readonly onError: (error: Error) => void;
}): RecordPublisher {
  const publications = new Map<string, Publication>();
  let closed = false;

  const offer = (clone: Clone, fence: Fence): Publication => {
    const known = publications.get(clone.id);
    const publication: Publication = known ?? {
      clone,
      fence,
      revision: 0,
      written: 0,
      lines: [],
      pumping: false,
      waiters: [],
      hurry: () => {},
    };
    publications.set(clone.id, publication);
    publication.clone = clone;
    publication.fence = fence;
    publication.revision += 1;
    return publication;
  };

  const pump = async (publication: Publication): Promise<void> => {
    if (publication.pumping) return;
    publication.pumping = true;
    while (!closed && publication.written < publication.revision) {
      const { clone, fence, revision } = publication;
      const lines = publication.lines.splice(0);
      let answer: WriteAnswer;
      try {
        answer = await o.write(toWrite(clone), fence, lines);
      } catch (error) {
        if (closed) break;
        o.onError(error as Error);
        publication.lines = [...lines, ...publication.lines].slice(-LINES_MAX);
        await pause(publication, RETRY_MS);
        continue;
      }
      publication.written = revision;
      const ends = hasEnded(clone.state) && publication.revision === revision;
      if (answer.outcome === 'refused' || ends) publications.delete(clone.id);
      const refused = answer.outcome === 'refused';
      settleWaiters(publication, refused ? Number.POSITIVE_INFINITY : revision, answer.outcome);
      if (refused) {
        o.onFenceLost(clone.id);
        break;
      }
      if (answer.cancelRequested) o.onCancelRequested(clone.id);
      if (answer.wishedTransfer !== null) o.onTransferWished(clone.id, answer.wishedTransfer);
      if (!ends) await pause(publication, INTERVAL_MS);
    }
    publication.pumping = false;
    if (closed) settleWaiters(publication, Number.POSITIVE_INFINITY, 'unavailable');
  };

  return {
    publish: (clone, fence) => {
      void pump(offer(clone, fence));
    },
    confirm: async (clone, fence) => {
      if (closed) return 'unavailable';
      const publication = offer(clone, fence);
      const { promise, resolve } = Promise.withResolvers<PublishOutcome>();
      publication.waiters.push({ revision: publication.revision, settle: resolve });
      publication.hurry();
      void pump(publication);
      return await promise;
    },
    appendLog: (id, line) => {
      const publication = publications.get(id);
      if (publication === undefined) return;
      publication.lines.push(JSON.stringify(clipped(line)));
      if (publication.lines.length > LINES_MAX) publication.lines.shift();
      publication.revision += 1;
      void pump(publication);
    },
    repeat: () => {
      for (const publication of publications.values()) {
        publication.revision += 1;
        void pump(publication);
      }
    },
    close: () => {
      closed = true;
      for (const publication of publications.values()) {
        publication.hurry();
        settleWaiters(publication, Number.POSITIVE_INFINITY, 'unavailable');
      }
    },
  };
}

export function toWrite(clone: Clone): RecordToWrite {
  return {
    id: clone.id,
    host: clone.host,
    record: JSON.stringify(clone),
    state: clone.state,
    endedAtMs: hasEnded(clone.state) ? Date.parse(clone.endedAt ?? clone.createdAt) : null,
    directories: directoriesOf(clone.spec.target),
    hasFiles: hasFiles(clone.instance),
  };
}

function settleWaiters(publication: Publication, upTo: number, outcome: PublishOutcome): void {
  const { waiters } = publication;
  publication.waiters = waiters.filter(({ revision }) => revision > upTo);
  for (const { revision, settle } of waiters) if (revision <= upTo) settle(outcome);
}

/** Shorter if somebody waits for the next write. */
async function pause(publication: Publication, ms: number): Promise<void> {
  if (publication.waiters.length > 0 && ms === INTERVAL_MS) return;
  const { promise, resolve } = Promise.withResolvers<void>();
  publication.hurry = resolve;
  const timer = setTimeout(resolve, ms);
  await promise;
  clearTimeout(timer);
  publication.hurry = () => {};
}

function clipped({ message, fields, ...line }: LogLine): LogLine {
  const clip = (text: string) =>
    text.length > TEXT_LENGTH_MAX ? `${text.slice(0, TEXT_LENGTH_MAX)}…` : text;
  return {
    ...line,
    message: clip(message),
    fields: Object.fromEntries(
      Object.entries(fields).map(([name, value]) => [
        name,
        typeof value === 'string' ? clip(value) : value,
      ]),
    ),
  };
}
