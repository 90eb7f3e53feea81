/** A gate over a real filesystem that is filled and emptied. */
import { existsSync, statSync } from 'node:fs';
import { rm, truncate } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { runProcess } from '@pgcloned/process';
import { mountFilesystem, runsAsRoot, type TestFilesystem } from '@pgcloned/testbed';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { openSpaceGate, type SpaceGateOptions } from '../src/copy/space-gate.ts';
import { filesystemOf } from '../src/target/space.ts';

const MIB = 1024 ** 2;
const walSegmentBytes = 4 * MIB;
const { signal } = new AbortController();

describe.skipIf(!runsAsRoot)('the gate of a filesystem', () => {
  let filesystem: TestFilesystem;
  beforeAll(async () => {
    filesystem = await mountFilesystem({ type: 'tmpfs', bytes: 100 * MIB });
  });
  afterAll(async () => {
    await filesystem[Symbol.asyncDispose]();
  });
  beforeEach(async () => {
    await rm(join(filesystem.path, 'filler'), { force: true });
  });

  /** With a file: what is left is 10 MiB, the reserve, and `bytes`. */
  async function leave(bytes: number): Promise<void> {
    const filler = join(filesystem.path, 'filler');
    const length = 90 * MIB - bytes;
    // What it holds already stays: at no moment more is free than at the end.
    if (existsSync(filler) && statSync(filler).size > length) await truncate(filler, length);
    await runProcess(
      { file: 'fallocate', args: ['--length', String(length), filler], env: {} },
      { signal },
    );
  }

  async function openGate(more: Partial<SpaceGateOptions> = {}) {
    const reasons: (string | null)[] = [];
    const gate = await openSpaceGate({
      destinations: [filesystem.path],
      walSegmentBytes,
      bytesToCome: () => 50 * MIB,
      limitMs: 60_000,
      waiting: (reason) => reasons.push(reason),
      ...more,
    });
    return { gate, reasons, [Symbol.asyncDispose]: () => gate[Symbol.asyncDispose]() };
  }

  test('closes below the reserve, stops what runs, and opens some way above it, each time with a word', async () => {
    await using opened = await openGate();
    const { gate, reasons } = opened;
    const halt = await gate.enter(filesystem.path, signal);

    const halted = new Promise((resolve) => {
      halt.addEventListener('abort', resolve);
    });
    await leave(-MIB);
    await halted;
    const entering = gate.enter(filesystem.path, signal);
    await leave(MIB);
    expect(await Promise.race([entering, delay(600, 'still closed')])).toBe('still closed');
    await leave(6 * MIB);

    expect((await entering).aborted).toBe(false);
    expect(reasons).toEqual([
      `free space on ${filesystem.path}: 9.00 MB left, 10.0 MB kept free, 50.0 MB still to come`,
      null,
    ]);
  });

  test('is closed from the start where there is too little, opens for less than the distance, and heeds a signal', async () => {
    await leave(-MIB);
    await using opened = await openGate({ bytesToCome: () => MIB });
    const controller = new AbortController();
    const aborted = opened.gate.enter(filesystem.path, controller.signal);
    controller.abort(new Error('the user cancelled'));
    await expect(aborted).rejects.toThrow('the user cancelled');

    const entering = opened.gate.enter(filesystem.path, signal);
    await leave(MIB);

    expect((await entering).aborted).toBe(false);
  });

  test('fails whoever waits when nobody makes room, with what is left and needed', async () => {
    await leave(-MIB);
    await using opened = await openGate({ limitMs: 50 });

    await expect(opened.gate.enter(filesystem.path, signal)).rejects.toMatchObject({
      code: 'TARGET_NO_SPACE',
      message: `there is too little space on ${filesystem.path}: 9.00 MB left, 10.0 MB kept free, 50.0 MB still to come`,
      hint: expect.stringMatching(/^Make room there/),
      facts: { freeBytes: 9 * MIB, reserveBytes: 10 * MIB, neededBytes: 50 * MIB },
    });
  });

  test('stays open where nothing is still to come', async () => {
    await leave(-MIB);
    await using opened = await openGate({ bytesToCome: () => 0 });

    expect((await opened.gate.enter(filesystem.path, signal)).aborted).toBe(false);
    expect(opened.reasons).toEqual([]);
  });

  test('keeps a twentieth of a large filesystem free, and never more than a gibibyte', async () => {
    await using large = await mountFilesystem({ type: 'tmpfs', bytes: 10 * 1024 * MIB });
    await using huge = await mountFilesystem({ type: 'tmpfs', bytes: 10 * 1024 ** 2 * MIB });

    const below = join(large.path, 'not', 'yet', 'there');
    expect(await filesystemOf(below, walSegmentBytes)).toMatchObject({
      path: large.path,
      freeBytes: 10 * 1024 * MIB,
      reserveBytes: 512 * MIB,
    });
    expect((await filesystemOf(huge.path, walSegmentBytes)).reserveBytes).toBe(1024 * MIB);
  });
});
