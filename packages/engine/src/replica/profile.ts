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
  // Taken at the start, whether it is needed or not.
  min_dynamic_shared_memory: '0',
};

/** As they are by default; where they are 0 there, from shared_buffers. */
const SMALL_SINCE_17: Readonly<Record<string, string>> = {
  commit_timestamp_buffers: '0',
  multixact_member_buffers: '32',
  multixact_offset_buffers: '16',
  notify_buffers: '16',
  serializable_buffers: '32',
  subtransaction_buffers: '0',
  transaction_buffers: '0',
};

export function settingsOf(
  profile: CloneSpec['replica']['profile'],
  { major }: { readonly major: number },
): Readonly<Record<string, string>> {
  return profile === 'small' ? { ...SMALL, ...(major >= 17 && SMALL_SINCE_17) } : {};
}
