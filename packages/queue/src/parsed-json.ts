/** What others have written into Redis may be anything, also no JSON. */

/** For what a schema looks at next: undefined, which none of them takes, if it is not JSON. */
export function parsedJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    // Whoever reads says what becomes of an entry that is none.
    return undefined;
  }
}
