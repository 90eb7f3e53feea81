import { expect, test } from 'vitest';
import { requireSupportedVersion } from '../src/index.ts';

test.each([
  [150_000, 15],
  [150_018, 15],
  [160_001, 16],
  [170_011, 17],
  [189_999, 18],
])('version number %d is major version %d', (versionNum, major) => {
  expect(requireSupportedVersion(versionNum)).toBe(major);
});

test.each([
  [90_624, '9.6.24'],
  [140_023, '14.23'],
  [190_000, '19.0'],
])('version number %d is refused as PostgreSQL %s', (versionNum, name) => {
  expect(() => requireSupportedVersion(versionNum)).toThrow(
    expect.objectContaining({
      code: 'SOURCE_VERSION_UNSUPPORTED',
      message: `PostgreSQL ${name} is not supported`,
      hint: expect.stringMatching(/^This release clones PostgreSQL 15 to 18: (?:upgrade|use one)/),
    }),
  );
});
