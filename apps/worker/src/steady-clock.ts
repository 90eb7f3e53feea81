/**
 * The clock of the host as far as it can be trusted with the removal of data.
 *
 * It may be set, by hand or by a time service, and a host that slept finds it far ahead. What looks overdue in such a moment
 * is given time: for whoever sets the clock right, and for whoever could not be heard to prolong it.
 */

/** No time service takes a larger step without somebody's doing. */
const JUMP_MS = 60_000;
const GRACE_MS = 600_000;

export interface SteadyClock {
  /** To be called every few seconds. */
  readonly look: () => void;
  /** @param timeMs Milliseconds since 1970. */
  readonly isPast: (timeMs: number) => boolean;
}

/** @param clocks The clock of the host, and one that nobody sets; both in milliseconds. */
export function watchClock(
  clocks: { readonly wall: () => number; readonly steady: () => number } = {
    wall: () => Date.now(),
    steady: () => performance.now(),
  },
): SteadyClock {
  let ahead = clocks.wall() - clocks.steady();
  let trustedFromMs = 0;
  const look = () => {
    const aheadNow = clocks.wall() - clocks.steady();
    if (aheadNow - ahead > JUMP_MS) trustedFromMs = clocks.steady() + GRACE_MS;
    ahead = aheadNow;
  };
  return {
    look,
    isPast: (timeMs) => {
      look();
      return clocks.steady() >= trustedFromMs && timeMs <= clocks.wall();
    },
  };
}
