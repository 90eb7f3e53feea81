/** Locales that this host lacks, and what installs them here. */
import { existsSync } from 'node:fs';
import type { Notice } from '@pgcloned/contract';
import { expect, test } from 'vitest';
import type { CloneRun } from '../src/clone-run.ts';
import type { Seen } from '../src/preflight/check.ts';
import { checkLocales } from '../src/preflight/locales.ts';

async function look(
  locales: Seen['facts']['locales'],
  settings: Readonly<Record<string, string>> = {},
): Promise<readonly Notice[]> {
  const notices: Notice[] = [];
  const seen = { facts: { locales, settings }, hostConfiguration: null } as unknown as Seen;
  await checkLocales({ signal: new AbortController().signal } as CloneRun, seen, {
    error: () => {},
    notice: (notice) => notices.push(notice),
  });
  return notices;
}

test('what every host knows is not missed', async () => {
  const databases = ['postgres'];

  expect(await look(['C', 'POSIX', 'C.UTF-8'].map((locale) => ({ locale, databases })))).toEqual(
    [],
  );
});

test('one that is missing is told with who needs it', async () => {
  const locales = [{ locale: 'xx_XX.UTF-8', databases: ['orders', 'letters'] }];

  expect(await look(locales, { lc_time: 'xx_XX.UTF-8', lc_messages: 'C' })).toMatchObject([
    {
      code: 'LOCALE_MISSING',
      message:
        'the locale xx_XX.UTF-8 is not installed on this host: the replica does not start with lc_time and lets nobody into orders, letters',
    },
  ]);
});

test.runIf(existsSync('/usr/bin/apt-get'))('on Debian it is made by its list', async () => {
  const [finding] = await look([{ locale: 'xx_XX.UTF-8', databases: ['orders'] }]);

  expect(finding?.remedies?.map(({ text, where }) => [where, text])).toEqual([
    ['root', 'apt-get install -y locales'],
    ['/etc/locale.gen', 'xx_XX.UTF-8 UTF-8'],
    ['root', 'locale-gen'],
  ]);
});

test('no command is made of a name that is none', async () => {
  const [finding] = await look([{ locale: 'xx_XX;reboot', databases: ['orders'] }]);

  expect(finding?.remedies).toEqual([]);
});
