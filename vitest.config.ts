import { defineConfig } from 'vitest/config';

export default defineConfig({
  test: {
    // Children die with the thread that started them (pdeathsig), so tests run in processes, never in threads.
    pool: 'forks',
    // Real servers on a machine that others may load. Who needed the second try is named at the end.
    retry: 1,
    // Limits end what hangs. They promise no speed, and hold on a machine that does ten other things.
    testTimeout: 120_000,
    hookTimeout: 60_000,
    expect: { poll: { timeout: 30_000 } },
    projects: [
      {
        extends: true,
        test: {
          name: 'fast',
          include: ['packages/*/test/**/*.test.ts', 'apps/{api,worker,cli}/test/**/*.test.ts'],
          sequence: { groupOrder: 0 },
        },
      },
      {
        extends: true,
        test: {
          name: 'e2e',
          include: ['apps/e2e/test/**/*.test.ts'],
          sequence: { groupOrder: 1 },
          // Most of their time they wait, for leases and timeouts, and one of them leaves no machine busy.
          maxWorkers: 2,
          testTimeout: 120_000,
          hookTimeout: 60_000,
        },
      },
    ],
    reporters: [
      'default',
      {
        // One plain line for whoever counts tests in a long log.
        onTestRunEnd(modules) {
          const tests = modules.flatMap((module) => [...module.children.allTests()]);
          const count = (state: string) =>
            tests.filter((test) => test.result().state === state).length;
          for (const test of tests)
            if (test.diagnostic()?.flaky === true) console.log(`second try: ${test.fullName}`);
          console.log(
            `${count('passed')} passed, ${count('failed')} failed, ${count('skipped')} skipped`,
          );
        },
      },
    ],
  },
});
