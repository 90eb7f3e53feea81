/** What a cell of the matrix can promise. */
import { type ErrorCode, PHASES, type PhaseName } from '@pgcloned/contract';

export type Promised =
  /** It succeeds within the attempt in which it was. */
  | { readonly kind: 'goes on' }
  /** It succeeds in a later attempt, by itself. */
  | { readonly kind: 'resumes' }
  /** It ends with one of these codes; nothing can be started and nothing is left, and asking again succeeds. */
  | { readonly kind: 'fails'; readonly codes: readonly ErrorCode[] }
  /** It was published before: it succeeds or ends with one of these codes, and the clone in the directory is whole. */
  | { readonly kind: 'complete'; readonly codes: readonly ErrorCode[] }
  /**
   * It was published before, and the source no longer has the WAL that it needs: it ends with one of these codes. The
   * clone is sound and cannot follow.
   */
  | { readonly kind: 'cut off'; readonly codes: readonly ErrorCode[] }
  /** What the row kills does not exist then. */
  | { readonly kind: 'nothing' };

export type Promises = Readonly<Record<PhaseName, Promised>>;

export const goesOn: Promised = { kind: 'goes on' };
export const resumes: Promised = { kind: 'resumes' };
export const nothing: Promised = { kind: 'nothing' };
export const fails = (...codes: readonly ErrorCode[]): Promised => ({ kind: 'fails', codes });
export const cutOff = (...codes: readonly ErrorCode[]): Promised => ({ kind: 'cut off', codes });
export const complete = (...codes: readonly ErrorCode[]): Promised => ({ kind: 'complete', codes });

/** The same everywhere, but for exceptions. */
export function everywhere(
  promised: Promised,
  but: Partial<Record<PhaseName, Promised>> = {},
): Promises {
  const entries = PHASES.map((phase) => [phase, but[phase] ?? promised]);
  return Object.fromEntries(entries) as Promises;
}
