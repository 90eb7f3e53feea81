import { expect, test } from 'vitest';
import { refuseForbiddenSettings } from '../src/index.ts';

/** Each of them runs a program, loads a library, reads or writes a file, or undoes what makes the replica one. */
const DANGEROUS = [
  'archive_cleanup_command',
  'archive_command',
  'archive_library',
  'config_file',
  'data_directory',
  'dynamic_library_path',
  'external_pid_file',
  'fsync',
  'full_page_writes',
  'hba_file',
  'ident_file',
  'include',
  'include_dir',
  'include_if_exists',
  'jit_provider',
  'krb_server_keyfile',
  'local_preload_libraries',
  'log_directory',
  'log_filename',
  'primary_conninfo',
  'primary_slot_name',
  'recovery_end_command',
  'recovery_target',
  'recovery_target_action',
  'restore_command',
  'session_preload_libraries',
  'shared_preload_libraries',
  'ssl_cert_file',
  'ssl_key_file',
  'ssl_passphrase_command',
  'stats_temp_directory',
  'unix_socket_directories',
  'zero_damaged_pages',
];

test.each(DANGEROUS)('a request may not set %s', (name) => {
  expect(() => refuseForbiddenSettings({ [name]: 'x' }, [])).toThrow(
    expect.objectContaining({
      code: 'SETTING_FORBIDDEN',
      facts: { setting: name },
      hint: expect.stringContaining('worker.allowedSettings'),
    }),
  );
});

test('a setting that nobody thought of is refused', () => {
  expect(() => refuseForbiddenSettings({ 'some_extension.option': 1 }, [])).toThrow(
    'setting some_extension.option may not be set by a request',
  );
});

test('the operator of a host can allow a setting by name', () => {
  expect(() => refuseForbiddenSettings({ fsync: false }, ['fsync'])).not.toThrow();
});

test('what makes a replica small or large can be set', () => {
  const settings = { max_connections: 300, shared_buffers: '2GB', port: 5433, work_mem: '64MB' };

  expect(() => refuseForbiddenSettings(settings, [])).not.toThrow();
});

test('what every object has by birth is no setting', () => {
  expect(() => refuseForbiddenSettings({ constructor: 1 }, [])).toThrow('setting constructor');
});
