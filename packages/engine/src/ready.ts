/** What preflight has found and opened, and every later phase works with. */
import type { Compression } from '@pgcloned/contract';
import type { ConnectionSettings, Session, SourceFacts } from '@pgcloned/postgres';
import type { HostProbe } from '@pgcloned/rsync';
import type { PromotionWatch } from './promotion-watch.ts';
import type { SourceHost } from './source-host.ts';
import type { Claim } from './target/claim.ts';
import type { TablespacePlace } from './target/layout.ts';

export interface Ready extends Claim {
  readonly host: SourceHost;
  /** The session that will run the backup (R3.1). */
  readonly session: Session;
  /** Null: the source is a primary. */
  readonly promotion: PromotionWatch | null;
  /** Where the source is by its configuration; `settings` is how it is connected to. */
  readonly address: ConnectionSettings;
  readonly settings: ConnectionSettings;
  readonly facts: SourceFacts;
  readonly probe: HostProbe;
  /** What the rsyncs of both hosts know. */
  readonly compressions: readonly Compression[];
  readonly binDirectory: string;
  readonly tablespaces: readonly TablespacePlace[];
  /** `postgresql.conf` of this host for the data directory, where it lies outside (Debian); null: there is none. */
  readonly hostConfiguration: string | null;
  /** Of the clone, as its configuration shall say; null: the configuration that it gets says so. */
  readonly port: number | null;
  /** Whether source and replica share a machine. */
  readonly sameHost: boolean;
}
