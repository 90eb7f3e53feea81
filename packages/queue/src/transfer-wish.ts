/** How somebody wishes a transfer to go on, as it stands beside the record in Redis. */
import { TransferLimits } from '@pgcloned/contract';
import { parsedJson } from './parsed-json.ts';

/** The same text for the same wish. */
export function formatTransferWish({ workers, maxRate }: TransferLimits): string {
  return JSON.stringify({ workers, maxRate });
}

/** @returns Null if there is none, or none that can be understood: the transfer goes on as it was. */
export function parseTransferWish(text: string | null | undefined): TransferLimits | null {
  if (text === null || text === undefined || text === '') return null;
  return TransferLimits.safeParse(parsedJson(text)).data ?? null;
}
