/** Settings of memory that a request can choose together (`replica.profile`). */
import type { CloneSpec } from '@pgcloned/contract';

const SMALL: Readonly<Record<string, string>> = {
  shared_buffers: '64MB',
  // From shared_buffers.
  wal_buffers: '-1',
  effective_cache_size: '256MB',
  work_mem: '4MB',
  temp_buffers: '8MB',
  maintenance_work_mem: '32MB',
  autovacuum_work_mem: '-1',
  logical_decoding_work_mem: '16MB',
  huge_pages: 'off',
};

export function settingsOf(
  profile: CloneSpec['replica']['profile'],
): Readonly<Record<string, string>> {
  return profile === 'small' ? SMALL : {};
}
