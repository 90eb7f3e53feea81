/**
 * Which settings of the replica a request may choose.
 *
 * Commands, libraries, paths and includes are code execution on the host of the replica, so they are not in the list; a
 * worker's configuration may allow single ones by name.
 */
import { CloneError } from './errors.ts';

export const SETTING_NAME = /^[a-z_][a-z0-9_.]*$/;

const SAFE = new Set(
  `
  autovacuum_work_mem checkpoint_completion_target checkpoint_timeout client_min_messages cpu_index_tuple_cost
  cpu_operator_cost cpu_tuple_cost deadlock_timeout default_statistics_target effective_cache_size
  effective_io_concurrency hash_mem_multiplier hot_standby hot_standby_feedback huge_pages idle_in_transaction_session_timeout
  idle_session_timeout jit jit_above_cost listen_addresses lock_timeout log_autovacuum_min_duration log_checkpoints
  log_connections log_disconnections log_duration log_error_verbosity log_lock_waits log_min_duration_statement
  log_min_error_statement log_min_messages log_recovery_conflict_waits log_replication_commands log_statement
  log_temp_files log_timezone logical_decoding_work_mem maintenance_io_concurrency maintenance_work_mem max_connections
  max_locks_per_transaction max_logical_replication_workers max_parallel_maintenance_workers max_parallel_workers
  max_parallel_workers_per_gather max_pred_locks_per_transaction max_prepared_transactions max_replication_slots
  max_slot_wal_keep_size max_stack_depth max_standby_archive_delay max_standby_streaming_delay
  max_sync_workers_per_subscription max_wal_senders max_wal_size max_worker_processes min_wal_size port
  random_page_cost recovery_min_apply_delay recovery_prefetch reserved_connections seq_page_cost shared_buffers
  statement_timeout superuser_reserved_connections temp_buffers temp_file_limit timezone track_activities
  track_activity_query_size track_commit_timestamp track_counts track_functions track_io_timing wal_buffers
  wal_keep_size wal_receiver_status_interval wal_receiver_timeout wal_retrieve_retry_interval wal_sender_timeout work_mem
  `
    .trim()
    .split(/\s+/),
);

/**
 * @param allowed Names that the worker's own configuration allows beyond the safe list.
 * @throws {CloneError} `SETTING_FORBIDDEN`, naming the setting and how it could be allowed.
 */
export function refuseForbiddenSettings(
  settings: Readonly<Record<string, unknown>>,
  allowed: readonly string[],
): void {
  for (const name of Object.keys(settings)) {
    if (SAFE.has(name) || allowed.includes(name)) continue;
    throw new CloneError('SETTING_FORBIDDEN', `setting ${name} may not be set by a request`, {
      facts: { setting: name },
      hint: `Leave it out, or let the operator of the host add ${name} to worker.allowedSettings.`,
    });
  }
}
