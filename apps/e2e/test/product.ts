/**
 * A source, pgcloned beside it, and clones through the API, as a provisioning system makes them.
 *
 * What is waited for is waited for through the API (`Prefer: wait`), or in the log of the worker: that says at once when
 * a phase begins, while the record follows at its own pace and may leave short phases out.
 */
import { existsSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { type Clone, hasEnded, type PhaseName } from '@pgcloned/contract';
import type { Finished } from '@pgcloned/process';
import {
  type LeftBehindOptions,
  leftBehind,
  makeDirectory,
  PGCLONED,
  type Pgcloned,
  type PgclonedOptions,
  runAsPartsUser,
  type Source,
  scratchDirectory,
  startPgcloned,
  startSource,
} from '@pgcloned/testbed';
import { expect } from 'vitest';

/** Nothing that a test waits for takes longer, on a machine that does ten other things. */
const WAIT_MS_MAX = 90_000;
const LOG_POLL_MS = 5;

/** A clone of an empty cluster, 22 MB, takes five seconds like this: there is a middle. */
export const SLOW = { maxRate: 4_000_000, workers: 2 };

interface ProductOptions extends PgclonedOptions {
  readonly source?: Parameters<typeof startSource>[0];
  /** Another host that the source is reached from, beside this one: that of the worker, see `workerOn`. */
  readonly from?: Parameters<typeof startSource>[1];
  readonly worker?: Readonly<Record<string, unknown>>;
  /** More of pgcloned.yaml. */
  readonly configuration?: Readonly<Record<string, unknown>>;
}

export interface Product extends AsyncDisposable {
  readonly source: Source;
  readonly pgcloned: Pgcloned;
  /** A path below the only data root. */
  readonly at: (...names: readonly string[]) => string;
  /** What to send for a clone into `at(name, 'main')`. */
  readonly specOf: (name: string, more?: SpecOver) => Record<string, unknown>;
  /** Asks for it. @throws Unless the API accepts. */
  readonly create: (name: string, more?: SpecOver) => Promise<Clone>;
  /** Settles once it holds of the record. @throws If the clone ends without it. */
  readonly until: (id: string, holds: (clone: Clone) => boolean) => Promise<Clone>;
  readonly ended: (id: string) => Promise<Clone>;
  /** Settles once the worker has begun the phase. @throws If the clone ends before. */
  readonly reached: (id: string, phase: PhaseName) => Promise<void>;
  /** The messages of the log about this clone. */
  readonly logged: (id: string) => readonly string[];
  /** `pgcloned ARGS` on the same machine. */
  readonly cli: (args: readonly string[], input?: string) => Promise<Finished>;
  /** Nothing of the clone is anywhere, and nothing of any clone at the source. */
  readonly expectNothingLeft: (clone: Clone, more?: Partial<LeftBehindOptions>) => Promise<void>;
}

/** Sections of the request, each merged over the default one. */
interface SpecOver {
  readonly target?: object;
  readonly [section: string]: unknown;
}

export async function startProduct(options: ProductOptions = {}): Promise<Product> {
  await using parts = new AsyncDisposableStack();
  const source = parts.use(await startSource(options.source, options.from));
  const { path } = parts.use(await scratchDirectory());
  const dataRoot = join(path, 'data');
  await makeDirectory(dataRoot);
  const pgcloned = parts.use(
    await startPgcloned(
      path,
      {
        worker: { dataRoots: [dataRoot], ...options.worker },
        sources: { orders: source.configuration },
        ...options.configuration,
      },
      options,
    ),
  );
  const owned = parts.move();

  const until: Product['until'] = async (id, holds) => {
    const deadlineMs = Date.now() + WAIT_MS_MAX;
    let tag = '';
    while (Date.now() < deadlineMs) {
      const { status, headers, body } = await pgcloned.request(
        'GET',
        `/v1/clones/${id}`,
        undefined,
        { prefer: 'wait=20', 'if-none-match': tag },
      );
      if (status === 304) continue;
      expect(status, JSON.stringify(body)).toBe(200);
      if (holds(body)) return body;
      if (hasEnded(body.state)) throw new Error(`the clone has ended: ${JSON.stringify(body)}`);
      tag = headers.get('etag') ?? '';
    }
    throw new Error('it never came true');
  };

  const product: Product = {
    source,
    pgcloned,
    at: (...names) => join(dataRoot, ...names),
    specOf: (name, { target, ...more } = {}) => ({
      source: { name: 'orders' },
      target: { host: 'testbed', dataDirectory: join(dataRoot, name, 'main'), ...target },
      ...more,
    }),
    create: async (name, more) => {
      const answer = await pgcloned.request('POST', '/v1/clones', product.specOf(name, more));
      expect(answer.status, JSON.stringify(answer.body)).toBe(202);
      return answer.body;
    },
    until,
    ended: async (id) => await until(id, ({ state }) => hasEnded(state)),
    reached: async (id, phase) => {
      const deadlineMs = Date.now() + WAIT_MS_MAX;
      for (;;) {
        const messages = product.logged(id);
        if (messages.includes(`phase ${phase} begins`)) return;
        const hasEndedBefore = messages.some((message) =>
          /^clone (?:failed|succeeded|is cancelled)/.test(message),
        );
        if (hasEndedBefore || Date.now() > deadlineMs)
          throw new Error(`the clone never came to ${phase}: ${messages.join(', ')}`);
        await delay(LOG_POLL_MS);
      }
    },
    logged: (id) =>
      readFileSync(pgcloned.logFile, 'utf8')
        .split('\n')
        .filter((line) => line.startsWith('{') && line.includes(`"cloneId":"${id}"`))
        .map((line) => JSON.parse(line).msg),
    cli: async (args, input) =>
      await runAsPartsUser([process.execPath, PGCLONED, '--config', pgcloned.configFile, ...args], {
        accept: 'any',
        ...(input !== undefined && { input }),
      }),
    expectNothingLeft: async ({ id, spec }, more = {}) => {
      const found = await leftBehind({
        names: [id],
        servers: [source.primary],
        directories: [dataRoot, dirname(spec.target.dataDirectory)].filter(existsSync),
        ...more,
      });
      expect(found).toEqual([]);
    },
    [Symbol.asyncDispose]: () => owned.disposeAsync(),
  };
  return product;
}
