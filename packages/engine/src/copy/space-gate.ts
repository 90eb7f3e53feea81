/**
 * Holds a copy back while a filesystem that it writes has too little left.
 *
 * Below the reserve (`target/space.ts`) nothing more is sent there: no batch begins, and what runs is stopped, since a
 * batch can be larger than the reserve. The source notices nothing: its backup, the pin and the stream go on. It opens
 * again by itself once somebody has made room, with some distance so that it does not flap; if nobody does, the copy
 * fails.
 */
import { CloneError, formatBytes } from '@pgcloned/contract';
import { unlessAborted } from '@pgcloned/process';
import { repeat } from '../repeat.ts';
import { type Filesystem, filesystemOf, freeBytesOn } from '../target/space.ts';
import { untilNextLookMs } from '../target/space-watch.ts';

const CLOSED_LOOK_MS = 250;

export interface SpaceGate extends AsyncDisposable {
  /**
   * Settles when there is room on the filesystem of a destination.
   *
   * @returns Aborts as soon as there no longer is.
   * @throws {CloneError} `TARGET_NO_SPACE` if there was none for too long.
   * @throws The signal's reason if it aborts.
   */
  readonly enter: (destination: string, signal: AbortSignal) => Promise<AbortSignal>;
}

export interface SpaceGateOptions {
  readonly destinations: readonly string[];
  readonly walSegmentBytes: number;
  /** What is still to be sent to a destination. */
  readonly bytesToCome: (destination: string) => number;
  /** How long it may be closed, in milliseconds. */
  readonly limitMs: number;
  /** Told why nothing is sent; null when it is open again. */
  readonly waiting: (reason: string | null) => void;
}

interface Gate {
  readonly filesystem: Filesystem;
  readonly destinations: string[];
  freeBytes: number;
  /** Of the time since it was last opened. */
  shortage: AbortController;
  closed: { readonly sinceMs: number; readonly opened: PromiseWithResolvers<void> } | null;
}

export async function openSpaceGate(options: SpaceGateOptions): Promise<SpaceGate> {
  const { limitMs, waiting, bytesToCome } = options;
  const gates = new Map<number, Gate>();
  const gateOf = new Map<string, Gate>();
  for (const destination of options.destinations) {
    const filesystem = await filesystemOf(destination, options.walSegmentBytes);
    const gate = gates.get(filesystem.device) ?? {
      filesystem,
      destinations: [],
      freeBytes: filesystem.freeBytes,
      shortage: new AbortController(),
      closed: null,
    };
    gate.destinations.push(destination);
    gates.set(filesystem.device, gate);
    gateOf.set(destination, gate);
  }
  const toCome = ({ destinations }: Gate) =>
    destinations.reduce((sum, destination) => sum + bytesToCome(destination), 0);
  const describe = ({ filesystem, freeBytes }: Gate, bytes: number) =>
    `${formatBytes(freeBytes)} left, ${formatBytes(filesystem.reserveBytes)} kept free, ${formatBytes(bytes)} still to come`;
  const tell = () => {
    const gate = [...gates.values()].find(({ closed }) => closed !== null);
    waiting(
      gate === undefined
        ? null
        : `free space on ${gate.filesystem.path}: ${describe(gate, toCome(gate))}`,
    );
  };

  const look = (gate: Gate): void => {
    const { filesystem, freeBytes, closed } = gate;
    const { reserveBytes, path } = filesystem;
    const bytes = toCome(gate);
    if (closed === null) {
      if (freeBytes >= reserveBytes || bytes <= 0) return;
      const opened = Promise.withResolvers<void>();
      // Nobody may be waiting when the time is up.
      opened.promise.catch(() => {});
      gate.closed = { sinceMs: performance.now(), opened };
      tell();
      gate.shortage.abort(new Error(`there is too little space on ${path}`));
    } else if (freeBytes >= reserveBytes + Math.min(reserveBytes / 2, bytes)) {
      gate.closed = null;
      gate.shortage = new AbortController();
      tell();
      closed.opened.resolve();
    } else if (performance.now() - closed.sinceMs > limitMs) {
      closed.opened.reject(
        new CloneError(
          'TARGET_NO_SPACE',
          `there is too little space on ${path}: ${describe(gate, bytes)}`,
          {
            facts: { path, freeBytes, reserveBytes, neededBytes: bytes, waitedMs: limitMs },
            hint: 'Make room there, then clone into the same directory again: what was copied is kept.',
          },
        ),
      );
    }
  };

  const lookAgain = async (gate: Gate): Promise<void> => {
    gate.freeBytes = await freeBytesOn(gate.filesystem);
    look(gate);
  };
  const watching = [...gates.values()].map((gate) =>
    repeat(
      () =>
        gate.closed === null
          ? untilNextLookMs(gate.freeBytes - gate.filesystem.reserveBytes)
          : CLOSED_LOOK_MS,
      async () => {
        await lookAgain(gate);
      },
      // A filesystem that is gone fails its writers.
      () => {},
    ),
  );
  return {
    enter: async (destination, signal) => {
      const gate = gateOf.get(destination);
      if (gate === undefined) throw new Error(`${destination} has no gate`);
      await lookAgain(gate);
      while (gate.closed !== null) await unlessAborted(gate.closed.opened.promise, signal);
      return gate.shortage.signal;
    },
    [Symbol.asyncDispose]: async () => {
      for (const one of watching) await one.stop();
    },
  };
}
