/** The log of the daemons: one JSON object per line on standard error, for journald and whatever collects it. */
import type { LogLevel } from '@pgcloned/contract';
import { type Logger, pino } from 'pino';

/** Written at once, so that the last words before a crash are not lost. */
export function openLog(level: LogLevel): Logger {
  return pino(
    {
      level,
      base: { pid: process.pid },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      // The last net: no secret is logged on purpose.
      redact: ['password', '*.password', '*.headers.authorization'],
    },
    pino.destination({ fd: process.stderr.fd, sync: true }),
  );
}
