/** Whether a time is over, told by a clock that may jump. */
import { expect, test } from 'vitest';
import { watchClock } from '../src/steady-clock.ts';

const MINUTE_MS = 60_000;

function clocks() {
  const now = { wall: 1_000_000_000, steady: 5_000 };
  const clock = watchClock({ wall: () => now.wall, steady: () => now.steady });
  return {
    clock,
    pass: (ms: number) => {
      now.wall += ms;
      now.steady += ms;
      clock.look();
    },
    jump: (ms: number) => {
      now.wall += ms;
      clock.look();
    },
    inMs: (ms: number) => now.wall + ms,
  };
}

test('a time is over when it has passed, and small corrections do not matter', () => {
  const { clock, pass, jump, inMs } = clocks();
  const time = inMs(5 * MINUTE_MS);

  pass(4 * MINUTE_MS);
  expect(clock.isPast(time)).toBe(false);
  jump(500);
  pass(MINUTE_MS);
  expect(clock.isPast(time)).toBe(true);
});

test('what a jump ahead makes overdue has ten minutes more, and goes on as before when it is set back', () => {
  const { clock, pass, jump, inMs } = clocks();
  const time = inMs(60 * MINUTE_MS);

  jump(90 * MINUTE_MS);
  expect(clock.isPast(time)).toBe(false);
  pass(9 * MINUTE_MS);
  expect(clock.isPast(time)).toBe(false);
  pass(MINUTE_MS);
  expect(clock.isPast(time)).toBe(true);
  jump(-90 * MINUTE_MS);
  expect(clock.isPast(time)).toBe(false);
});
