/** Waits for all of them, so that what one acquires is not lost when another fails, then throws the first failure. */
export async function together<Results extends readonly unknown[]>(
  promises: { [Index in keyof Results]: Promise<Results[Index]> },
): Promise<Results> {
  const ends = await Promise.allSettled(promises);
  for (const end of ends) if (end.status === 'rejected') throw end.reason;
  return ends.map((end) => (end as PromiseFulfilledResult<unknown>).value) as unknown as Results;
}
