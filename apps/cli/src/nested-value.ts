/** Reading and writing a value deep in plain objects, by the path of its keys. */

export function getIn(content: unknown, path: readonly string[]): unknown {
  return path.reduce<unknown>((above, key) => (isObject(above) ? above[key] : undefined), content);
}

/** Makes what is missing on the way. Does nothing if the way leads through something that is no object. */
export function setIn(
  content: Record<string, unknown>,
  path: readonly string[],
  value: unknown,
): void {
  const [first = '', ...rest] = path;
  if (rest.length === 0) {
    content[first] = value;
    return;
  }
  const below = content[first] ?? {};
  if (!isObject(below)) return;
  content[first] = below;
  setIn(below, rest, value);
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}
