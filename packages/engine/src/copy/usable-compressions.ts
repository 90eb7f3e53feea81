/** Which compressions the rsyncs of both hosts know: 3.2.0 brought lz4 and zstd, and either may be left out when it is built. */
import { CloneError, type Compression } from '@pgcloned/contract';

/**
 * @param asked As in the spec.
 * @returns Those that both know.
 * @throws {CloneError} `TOOL_MISSING` if the one that was asked for is not among them.
 */
export function usableCompressions({
  asked,
  here,
  there,
  sourceHost,
}: {
  readonly asked: Compression | 'auto';
  readonly here: readonly Compression[];
  readonly there: readonly Compression[];
  readonly sourceHost: string;
}): readonly Compression[] {
  const usable = here.filter((compression) => there.includes(compression));
  if (asked === 'auto' || usable.includes(asked)) return usable;
  const host = here.includes(asked) ? sourceHost : 'this host';
  throw new CloneError('TOOL_MISSING', `the rsync of ${host} cannot compress with ${asked}`, {
    facts: { program: 'rsync', host, compression: asked, usable: usable.join(', ') },
    hint: `Install an rsync of 3.2.0 or newer there, built with ${asked}, or choose transfer.compression: auto, which uses what both hosts have.`,
  });
}
