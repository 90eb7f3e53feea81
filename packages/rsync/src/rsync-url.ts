/** Where a file or a whole module is, as rsync takes it. */
export function rsyncUrl({
  user,
  address,
  port,
  module,
  path = '',
}: {
  readonly user: string;
  readonly address: string;
  readonly port: number;
  readonly module: string;
  readonly path?: string;
}): string {
  const host = address.includes(':') ? `[${address}]` : address;
  return `rsync://${user}@${host}:${String(port)}/${module}/${path}`;
}
