import { expect, test } from 'vitest';
import { rsyncVersionWarning } from '../src/index.ts';

test.each(['3.1.3', '3.2.7', '3.3.0'])('rsync %s is warned of with the oldest holes', (version) => {
  expect(rsyncVersionWarning(version)).toContain('CVE-2024-12084');
});

test.each(['3.4.0', '3.4.1', '3.4.4'])(
  'rsync %s is warned of with the newer ones only',
  (version) => {
    const warning = rsyncVersionWarning(version);

    expect(warning).toContain('CVE-2026-53784');
    expect(warning).not.toContain('CVE-2024-12084');
  },
);

test.each(['3.5.0', '3.5.1', '3.10.0', '4.0.0'])('nothing is known against rsync %s', (version) => {
  expect(rsyncVersionWarning(version)).toBeNull();
});
