/** Messages as rsync 3.1 to 3.5 print them; most were seen in the transfers of `transfer.test.ts`, the rest needs bad disks. */
import { describe, expect, test } from 'vitest';
import { explainExit } from '../src/exit-explanation.ts';

const LAST =
  'rsync error: some files/attrs were not transferred (see previous errors) (code 23) at main.c(2005) [generator=3.5.0]';

const DAEMON = {
  kind: 'daemon',
  address: '127.0.0.1',
  port: 45_000,
  user: 'x',
  password: 'y',
  module: 'pgdata',
} as const;

const explain = (
  status: number | null,
  messages: readonly string[],
  names: readonly string[] = ['base/1/a', 'base/1/b'],
) =>
  explainExit({
    exit: { status, signal: status === null ? 'SIGKILL' : null },
    messages,
    names: new Set(names),
    endpoint: DAEMON,
  });

const codeOf = (...args: Parameters<typeof explain>) => {
  try {
    explain(...args);
    return null;
  } catch (error) {
    return (error as { code?: string }).code;
  }
};

describe('a partial transfer', () => {
  test('names the files that became shorter or changed, each once', () => {
    const again = explain(23, [
      'WARNING: base/1/b failed verification -- update retained (will try again).',
      'rsync: [sender] read errors mapping "/base/1/a" (in pgdata): No data available (61)',
      'rsync: read errors mapping "base/1/a" (in pgdata): No data available (61)',
      'ERROR: base/1/b failed verification -- update retained.',
      'file has vanished: "/base/1/c" (in pgdata)',
      '',
      LAST,
    ]);

    expect(again).toEqual(['base/1/a', 'base/1/b']);
  });

  test('gives names back as they were asked for', () => {
    const names = ['x"y (in pgdata)', 'a\nb', '\\#012', '\xe9'];

    const again = explain(
      23,
      ['x"y (in pgdata)', 'a\\#012b', '\\#134#012', '\xe9'].map(
        (name) =>
          `rsync: [sender] read errors mapping "/${name}" (in pgdata): No data available (61)`,
      ),
      names,
    );

    expect(again).toEqual(names);
  });

  test.each([
    ['EIO', 'rsync: [sender] read errors mapping "/base/1/a" (in pgdata): Input/output error (5)'],
    [
      'EACCES',
      'rsync: [sender] send_files failed to open "/base/1/a" (in pgdata): Permission denied (13)',
    ],
    ['a directory', 'rsync: [sender] link_stat "/base" (in pgdata) failed: Input/output error (5)'],
    [
      'the target',
      'rsync: [receiver] mkstemp "/t/base/1/.a.x" failed: Operation not permitted (1)',
    ],
    [
      'a stranger',
      'rsync: [sender] read errors mapping "/base/1/z" (in pgdata): No data available (61)',
    ],
    ['a new message', 'rsync: [sender] something is rotten'],
  ])('is fatal for %s, whatever else is harmless', (_, message) => {
    const harmless =
      'rsync: [sender] read errors mapping "/base/1/b" (in pgdata): No data available (61)';

    expect(codeOf(23, [harmless, message, LAST])).toBe('TRANSFER_FAILED');
    expect(codeOf(23, [message, harmless, LAST])).toBe('TRANSFER_FAILED');
  });

  test('is fatal if nothing says why', () => {
    expect(codeOf(23, [LAST])).toBe('TRANSFER_FAILED');
  });

  test('is a full target when a file could not be made for lack of space', () => {
    const message = 'rsync: [receiver] open "/t/base/1/a" failed: No space left on device (28)';

    expect(codeOf(23, [message, LAST])).toBe('TARGET_NO_SPACE');
    expect(
      codeOf(11, [message.replace('No space left on device (28)', 'Disk quota exceeded (122)')]),
    ).toBe('TARGET_NO_SPACE');
  });
});

test('vanished files are no error', () => {
  expect(explain(24, ['file has vanished: "/base/1/a" (in pgdata)'])).toEqual([]);
});

test.each([
  [5, '@ERROR: max connections (4) reached -- try again later', 'SOURCE_LOST'],
  [5, '@ERROR: auth failed on module pgdata', 'RSYNCD_FAILED'],
  [5, '@ERROR: chdir failed', 'RSYNCD_FAILED'],
  [10, 'rsync: failed to connect to db1 (10.0.0.1): Connection refused (111)', 'SOURCE_LOST'],
  [12, 'rsync: connection unexpectedly closed (0 bytes received so far) [receiver]', 'SOURCE_LOST'],
  [20, 'rsync error: received SIGINT, SIGTERM, or SIGHUP (code 20) at rsync.c(716)', 'SOURCE_LOST'],
  [30, 'rsync error: timeout in data send/receive (code 30) at io.c(195)', 'SOURCE_LOST'],
  [
    35,
    'rsync error: timeout waiting for daemon connection (code 35) at socket.c(278)',
    'SOURCE_LOST',
  ],
  [null, '', 'SOURCE_LOST'],
  [11, 'rsync: [receiver] write failed on "/t/a": Input/output error (5)', 'TRANSFER_FAILED'],
  [4, 'Failed to negotiate a compress choice.', 'TRANSFER_FAILED'],
  [2, 'rsync error: protocol incompatibility (code 2) at compat.c(622)', 'TRANSFER_FAILED'],
])('exit status %s with `%s` is %s', (status, message, code) => {
  expect(codeOf(status, [message])).toBe(code);
});
