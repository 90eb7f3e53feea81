/** What is written here is read by a real postgres, which says what it understood. */
import { mkdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { findPostgres, runAsPartsUser, scratchDirectory, startPrimary } from '@pgcloned/testbed';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import {
  appendSettings,
  effectiveSettings,
  formatPassfileLine,
  primaryConninfo,
  quoteSetting,
  withoutSettings,
} from '../src/index.ts';
import { connectionTo } from './connection-to.ts';

const { signal } = new AbortController();
const binDirectory = findPostgres();

test('any value of a setting reaches the server as it is', async () => {
  await using scratch = await scratchDirectory();
  const anyValue = fc.oneof(
    fc.string({ unit: 'grapheme' }),
    fc.string({ unit: fc.constantFrom("'", '\\', '\n', '\r', '\t', '#', '$', ' ', 'n', '0') }),
  );

  await fc.assert(
    fc.asyncProperty(
      anyValue.filter((value) => !value.includes('\0')),
      async (value) => {
        const configFile = join(scratch.path, 'postgresql.conf');
        await writeFile(configFile, `cluster.name = ${quoteSetting(value)}\n`);
        await writeFile(join(scratch.path, 'PG_VERSION'), '15\n');
        const read = await effectiveSettings({
          binDirectory,
          dataDirectory: scratch.path,
          configFile: null,
          names: ['cluster.name'],
          signal,
        });

        expect(read['cluster.name']).toBe(value);
      },
    ),
    { numRuns: 40 },
  );
}, 60_000);

test('what is appended wins over what stands before, and the rest stays', async () => {
  await using scratch = await scratchDirectory();
  await writeFile(join(scratch.path, 'postgresql.conf'), "port = 1111\nwork_mem = '1MB'\n");
  const autoConf = appendSettings("port = 2222\nrecovery_target_time = 'today'", {
    port: '3333',
    recovery_target_time: '',
  });
  await writeFile(join(scratch.path, 'postgresql.auto.conf'), autoConf);

  const settings = await effectiveSettings({
    binDirectory,
    dataDirectory: scratch.path,
    configFile: null,
    names: ['port', 'work_mem', 'recovery_target_time', 'max_connections'],
    signal,
  });

  expect(settings).toEqual({
    port: '3333',
    work_mem: '1024',
    recovery_target_time: '',
    max_connections: '100',
  });
});

test('appending nothing changes nothing', () => {
  expect(appendSettings('a = 1\n', {})).toBe('a = 1\n');
  expect(appendSettings('', { port: '1' })).toBe("port = '1'\n");
});

test('a name that would break out of its line is refused', () => {
  expect(() => appendSettings('', { 'port = 1\narchive_command': 'x' })).toThrow(RangeError);
});

test('a configuration outside the data directory is read with its includes', async () => {
  await using scratch = await scratchDirectory();
  const [dataDirectory, etc] = [join(scratch.path, 'data'), join(scratch.path, 'etc')];
  await mkdir(dataDirectory);
  await mkdir(join(etc, 'conf.d'), { recursive: true });
  const configFile = join(etc, 'postgresql.conf');
  await writeFile(configFile, `data_directory = '${dataDirectory}'\ninclude_dir = 'conf.d'\n`);
  await writeFile(join(etc, 'conf.d', 'a.conf'), 'max_connections = 77\n');

  const settings = await effectiveSettings({
    binDirectory,
    dataDirectory,
    configFile,
    names: ['max_connections', 'config_file'],
    signal,
  });

  expect(settings).toEqual({ max_connections: '77', config_file: configFile });
});

test("a configuration that is not valid fails with the server's own words", async () => {
  await using scratch = await scratchDirectory();
  await writeFile(join(scratch.path, 'postgresql.conf'), 'max_connections = many\n');

  const reading = effectiveSettings({
    binDirectory,
    dataDirectory: scratch.path,
    configFile: null,
    names: ['max_connections'],
    signal,
  });

  await expect(reading).rejects.toMatchObject({
    code: 'PROCESS_FAILED',
    facts: { stderr: expect.stringContaining('invalid value for parameter "max_connections"') },
  });
});

test('settings are found again to be taken away after the server has written its file anew', async () => {
  await using server = await startPrimary();
  const file = join(server.dataDirectory, 'postgresql.auto.conf');
  const temporary = { restore_command: "it's \\ false", hot_standby: 'off' };
  const own = appendSettings('', { restore_command: '', work_mem: '3MB' });
  await writeFile(file, appendSettings(own, temporary));
  await server.query("ALTER SYSTEM SET temp_buffers = '9MB'");

  const left = withoutSettings(await readFile(file, 'utf8'), temporary);

  expect(left).toContain("restore_command = ''\n");
  expect(left).toContain("work_mem = '3MB'\n");
  expect(left).toContain("temp_buffers = '9MB'\n");
  expect(left).not.toMatch(/hot_standby|false/);
});

test('a standby reaches its primary by the connection string, blanks and quotes in the paths or not', async () => {
  await using scratch = await scratchDirectory();
  await using server = await startPrimary({ hba: ['host all all 127.0.0.1/32 scram-sha-256'] });
  await server.query("CREATE ROLE cloner LOGIN PASSWORD 'geh:eim\\'");
  const passFile = join(scratch.path, "its 'pass\\file");
  // Made by the user that psql runs as: it reads no other's.
  await runAsPartsUser(['sh', '-c', 'umask 077 && cat >"$0"', passFile], {
    input: formatPassfileLine(
      { host: server.host, port: server.port, database: '*', user: 'cloner' },
      'geh:eim\\',
    ),
  });

  const conninfo = primaryConninfo(connectionTo(server, { user: 'cloner' }), {
    servers: [server],
    passFile,
  });
  const { stdout } = await runAsPartsUser([
    join(binDirectory, 'psql'),
    '-XAtc',
    'SELECT current_user',
    `${conninfo} dbname=postgres`,
  ]);

  expect(stdout.toString().trim()).toBe('cloner');
  expect(conninfo).not.toContain('eim');
});
