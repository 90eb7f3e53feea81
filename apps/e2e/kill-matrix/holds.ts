/**
 * Where a clone can be held: one function of the product in the middle of each phase, and of what is done with it afterwards.
 *
 * What is there while it is held is what the phase works with: in `preflight` both connections, in `stream-wal` also pin
 * and receiver, and so on. Two phases are held by PostgreSQL itself where that is nearer to the real thing
 * (moments.ts), and `copy-files` lasts long enough without, but for reflinks.
 */

interface Hold {
  /** The module below packages/ that exports the function. */
  readonly module: string;
  readonly name: string;
  /** Whether its work is done while it is held. */
  readonly when: 'before' | 'after';
}

export const HOLDS = [
  {
    module: 'engine/src/replica/required-settings.ts',
    name: 'checkSettings',
    when: 'before',
  },
  { module: 'postgres/src/wal-receiver.ts', name: 'startWalReceiver', when: 'after' },
  // The pin is there, and proven.
  { module: 'rsync/src/remote-file.ts', name: 'remoteExists', when: 'after' },
  { module: 'postgres/src/backup.ts', name: 'startBackup', when: 'before' },
  { module: 'engine/src/copy/directories.ts', name: 'makeDirectories', when: 'after' },
  { module: 'postgres/src/backup.ts', name: 'stopBackup', when: 'before' },
  { module: 'engine/src/phases/collect-wal.ts', name: 'collectWal', when: 'before' },
  { module: 'postgres/src/wal-proof.ts', name: 'proveWal', when: 'before' },
  { module: 'engine/src/replica/configure.ts', name: 'configureReplica', when: 'before' },
  { module: 'postgres/src/replica-status.ts', name: 'standbyStatus', when: 'before' },
  // Before it is promoted for certain.
  { module: 'engine/src/replica/start-server.ts', name: 'startReplicaServer', when: 'after' },
  { module: 'engine/src/instance/serve.ts', name: 'giveWay', when: 'after' },
  { module: 'engine/src/target/old-cluster.ts', name: 'takeControlFileAway', when: 'after' },
] as const satisfies readonly Hold[];

export type HoldName = (typeof HOLDS)[number]['name'];
