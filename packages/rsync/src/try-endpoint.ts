/** Whether files can come from an endpoint, found out before anything is done. */
import { runProcess } from '@pgcloned/process';
import { approach, type TransferEndpoint } from './endpoint.ts';
import { explainExit } from './exit-explanation.ts';

/**
 * Looks into the directory as a transfer does. Changes nothing.
 *
 * @throws {CloneError} What `transfer` throws.
 */
export async function tryEndpoint(
  endpoint: TransferEndpoint,
  { timeoutMs, signal }: { readonly timeoutMs: number; readonly signal: AbortSignal },
): Promise<void> {
  const timeoutSeconds = Math.max(1, Math.ceil(timeoutMs / 1000));
  const { options, source, ...surroundings } = approach(endpoint, { timeoutSeconds });
  const messages: string[] = [];
  const exit = await runProcess(
    { file: 'rsync', args: ['--list-only', ...options, source], ...surroundings },
    {
      signal,
      accept: 'any',
      encoding: 'latin1',
      onErrorLine: (line) => messages.push(line),
    },
  );
  explainExit({ exit, messages, names: new Set(), endpoint });
}
