/** The log of the daemons: one JSON object per line on standard error, for journald and whatever collects it. */
import type { LogLevel } from '@pgcloned/contract';
import { type Logger, pino } from 'pino';

/** What waits for room on a full disk; more is lost. */
const WAITING_BYTES_MAX = 16 * 1024 ** 2;

/**
 * Written at once, so that the last words before a crash are not lost. What cannot be written comes later: a full disk of
 * the log ends no daemon, and no clone with it.
 */
export function openLog(level: LogLevel): Logger {
  const destination = pino.destination({
    fd: process.stderr.fd,
    sync: true,
    maxLength: WAITING_BYTES_MAX,
  });
  destination.on('error', () => {});
  return pino(
    {
      level,
      base: { pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      // The last net: no secret is logged on purpose.
      redact: ['password', '*.password', '*.headers.authorization'],
    },
    destination,
  );
}
