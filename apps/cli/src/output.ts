/** Standard output is for results. Progress and logs go to standard error, so that both can be redirected alone. */

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** One object, one line. */
export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value)}\n`);
}
