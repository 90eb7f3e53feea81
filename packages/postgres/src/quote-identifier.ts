/** Names of roles and functions in the commands that hints offer. */

/** As PostgreSQL's `quote_ident`, except that it also quotes no key word: roles are rarely called so. */
export function quoteIdentifier(name: string): string {
  return /^[a-z_][a-z0-9_$]*$/.test(name) ? name : `"${name.replaceAll('"', '""')}"`;
}
