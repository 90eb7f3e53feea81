/**
 * The commands and options of `pgcloned`, and their help.
 *
 * What a command does is imported only when it runs: `--version` and `--help` need neither Fastify nor BullMQ.
 */
import {
  CloneError,
  EXIT_STATUS,
  LOG_LEVELS,
  parseBytes,
  parseSeconds,
  STATES,
  VERSION,
} from '@pgcloned/contract';
import { Command, CommanderError, Option } from 'commander';
import { overrideVariables } from './config.ts';
import type { Invocation } from './invocation.ts';
import { refuseRoot } from './refuse-root.ts';
import { rivalsOf, SPEC_OPTIONS } from './spec-options.ts';

export function buildProgram(invocation: Invocation): Command {
  const program = new Command('pgcloned')
    .description('Makes physical clones of PostgreSQL clusters.')
    .version(VERSION, '-V, --version')
    .option('--config <file>', 'configuration (PGCLONED_CONFIG, /etc/pgcloned/pgcloned.yaml)')
    .option('--json', 'one JSON object per line instead of text')
    .addOption(
      new Option('--log-level <level>', 'of the log on standard error').choices(LOG_LEVELS),
    )
    .option('--debug', 'log level debug, and stack traces with errors')
    // Set before the commands, which take it over.
    .exitOverride()
    .configureOutput({ outputError: () => {} })
    // They may stand behind every command.
    .configureHelp({ showGlobalOptions: true })
    .addHelpText('after', examples('up', 'run --host db1 --data-directory /srv/pg/15 --start'))
    .addHelpText('after', '\nSee also: pgcloned help exit-statuses, pgcloned help variables');

  addDaemons(program, invocation);
  addRun(program, invocation);
  addClones(program, invocation);
  addPreflight(program, invocation);
  addHosts(program, invocation);
  addTokens(program, invocation);
  addTopics(program);
  return program;
}

function addDaemons(program: Command, invocation: Invocation): void {
  program
    .command('up')
    .description('API, worker and Redis on this machine: everything in one process')
    .addHelpText(
      'after',
      `
Prints one line when it is ready. Needs no configuration: state goes to ~/.local/state/pgcloned, clones may lie below
/var/lib/postgresql, and an admin token is made at the first start. Stops cleanly at SIGTERM or SIGINT.
${examples('up', 'up --config /etc/pgcloned/pgcloned.yaml')}`,
    )
    .action(async (_options, command: Command) => {
      refuseRoot(invocation.words);
      const { up } = await import('./commands/daemons.ts');
      await up(invocation, command.optsWithGlobals());
    });
  program
    .command('api')
    .description('the API alone; many may run beside one Redis')
    .addHelpText('after', REDIS_HELP)
    .addHelpText('after', examples('api --config /etc/pgcloned/pgcloned.yaml'))
    .action(async (_options, command: Command) => {
      const { api } = await import('./commands/daemons.ts');
      await api(invocation, command.optsWithGlobals());
    });
  program
    .command('worker')
    .description('the worker alone: it makes the clones of this host')
    .addHelpText('after', REDIS_HELP)
    .addHelpText('after', examples('worker --config /etc/pgcloned/pgcloned.yaml'))
    .action(async (_options, command: Command) => {
      refuseRoot(invocation.words);
      const { worker } = await import('./commands/daemons.ts');
      await worker(invocation, command.optsWithGlobals());
    });
}

function addRun(program: Command, invocation: Invocation): void {
  const run = program
    .command('run')
    .description('make one clone now, in this process: no Redis, no API')
    .argument('[origin]', 'data directory of a server on this host, to be cloned by reflinks')
    .argument('[clone]', 'where PGDATA of its clone shall lie')
    .option('-f, --file <spec>', 'SPEC in YAML or JSON; - is standard input')
    .option('--preflight', 'only find what stands against the clone, and how it is mended')
    .option('--keep-temporary', 'keep the directory in which WAL was collected');
  addProgressOptions(run);
  for (const [group, options] of Object.entries(SPEC_OPTIONS)) {
    run.optionsGroup(group);
    for (const option of options) {
      const { flags, help, read } = option;
      if (read === 'pairs') run.option(flags, help, appendTo);
      else run.addOption(new Option(flags, help).conflicts(rivalsOf(option)));
    }
  }
  run
    .addHelpText(
      'after',
      `
An option overrides what SPEC says. SPEC is the body of POST /v1/clones, whose source may also be spelled out like one
of the configuration. SIGINT and SIGTERM cancel: the clone is undone, and the exit status is 130.
${examples(
  'run --host db1 --user cloner --data-directory /var/lib/postgresql/15/main --start --wait-for streaming',
  'run -f clone.yaml --max-rate 200MB --tablespace /srv/fast=/srv/fast2',
  'run --source orders -D "/srv/pg/orders copy" --replace --progress plain',
  'run --method reflink /srv/pg/orders /srv/pg/orders-test --replica-port 5433 --start',
)}`,
    )
    .action(async (_origin, _clone, _options, command: Command) => {
      refuseRoot(invocation.words);
      const { run: runNow } = await import('./commands/run.ts');
      await runNow(invocation, command.optsWithGlobals(), command.args);
    });
}

function addClones(program: Command, invocation: Invocation): void {
  const clone = program
    .command('clone')
    .description('clones through the API (PGCLONED_URL, PGCLONED_TOKEN)')
    .addHelpText('after', API_HELP);
  addProgressOptions(
    clone
      .command('create')
      .description('ask for a clone')
      .requiredOption('-f, --file <spec>', 'SPEC in YAML or JSON; - is standard input')
      .option('--wait', 'follow it to its end; the exit status says how it ended'),
  )
    .addHelpText('after', examples('clone create -f clone.yaml --wait', 'clone create -f -'))
    .action(async (_options, command: Command) => {
      const { createClone } = await import('./commands/clones.ts');
      await createClone(invocation, command.optsWithGlobals());
    });
  clone
    .command('list')
    .description('list clones, newest first')
    .addOption(new Option('--state <state>', 'only those in this state').choices(STATES))
    .option('--host <name>', 'only those of this host')
    .option('--label <name=value>', 'only those with this label; NAME alone: with any value of it')
    .addOption(
      new Option('--limit <number>', 'at most so many').argParser(positiveInteger).default(50),
    )
    .addHelpText(
      'after',
      examples('clone list --state running', '--json clone list --label template=orders --limit 1'),
    )
    .action(async (_options, command: Command) => {
      const { listClones } = await import('./commands/clones.ts');
      await listClones(invocation, command.optsWithGlobals());
    });
  clone
    .command('show <id>')
    .description('show one clone')
    .addHelpText('after', examples('clone show ID', '--json clone show ID'))
    .action(async (id: string, _options, command: Command) => {
      const { showClone } = await import('./commands/clones.ts');
      await showClone(invocation, command.optsWithGlobals(), id);
    });
  addProgressOptions(
    clone
      .command('watch <id>')
      .description('follow a clone to its end; the exit status says how it ended')
      .addHelpText('after', examples('clone watch ID', 'clone watch --progress none ID')),
  ).action(async (id: string, _options, command: Command) => {
    const { watchClone } = await import('./commands/clones.ts');
    await watchClone(invocation, command.optsWithGlobals(), id);
  });
  clone
    .command('change <id>')
    .description(
      'change protection, rate and workers of a clone, also while it copies; what is not given stays',
    )
    .option(
      '--max-rate <size>',
      'bytes per second of all together; none: no limit',
      orWord('none', parseBytes),
    )
    .option(
      '-j, --workers <number>',
      'rsyncs at a time; auto: as many as the host has cores, at most 8',
      orWord('auto', positiveInteger),
    )
    .option('--protect', 'neither delete nor the end of its time removes its files')
    .option('--no-protect', 'take that back')
    .addHelpText(
      'after',
      examples('clone change ID --max-rate 50MB', 'clone change ID --max-rate none --workers 8'),
    )
    .action(async (id: string, _options, command: Command) => {
      const { changeClone } = await import('./commands/clones.ts');
      await changeClone(invocation, command.optsWithGlobals(), id);
    });
  clone
    .command('cancel <id>')
    .description('cancel a clone; it is cancelled once everything is tidied up')
    .addHelpText('after', examples('clone cancel ID'))
    .action(async (id: string, _options, command: Command) => {
      const { cancelClone } = await import('./commands/clones.ts');
      await cancelClone(invocation, command.optsWithGlobals(), id);
    });
  for (const action of ['start', 'stop'] as const) {
    clone
      .command(`${action} <id>`)
      .description(`${action} the server of a clone that has ended`)
      .addHelpText('after', examples(`clone ${action} ID`))
      .action(async (id: string, _options, command: Command) => {
        const { serveClone } = await import('./commands/clones.ts');
        await serveClone(invocation, command.optsWithGlobals(), { id, action });
      });
  }
  addProgressOptions(
    clone
      .command('reset <id>')
      .description("make a clone again in its place, from the source's state of now")
      .option('--wait', 'follow the new clone to its end; the exit status says how it ended')
      .addHelpText(
        'after',
        '\nThe new clone has an id of its own, and the port, labels and protection of the old one.',
      )
      .addHelpText('after', examples('clone reset --wait ID')),
  ).action(async (id: string, _options, command: Command) => {
    const { resetClone } = await import('./commands/clones.ts');
    await resetClone(invocation, command.optsWithGlobals(), id);
  });
  clone
    .command('extend <id>')
    .description('give a clone another time to live, from now on')
    .requiredOption(
      '--ttl <time>',
      'when its files are removed, as 90min, 12h or 7d; none: never',
      orWord('none', parseSeconds),
    )
    .addHelpText('after', examples('clone extend ID --ttl 2h', 'clone extend ID --ttl none'))
    .action(async (id: string, { ttl }: { ttl: number | 'none' }, command: Command) => {
      const { extendClone } = await import('./commands/clones.ts');
      await extendClone(invocation, command.optsWithGlobals(), {
        id,
        ttl: ttl === 'none' ? null : ttl,
      });
    });
  clone
    .command('delete <id>')
    .description('forget a clone that has ended; its files stay')
    .option('--data', 'the other way round: stop its server and remove its files')
    .option('--force', 'also one whose host is gone (role admin)')
    .addHelpText('after', examples('clone delete --data ID', 'clone delete ID'))
    .action(async (id: string, _options, command: Command) => {
      const { deleteClone } = await import('./commands/clones.ts');
      await deleteClone(invocation, command.optsWithGlobals(), id);
    });
}

function addPreflight(program: Command, invocation: Invocation): void {
  program
    .command('preflight')
    .description('find what stands against a clone, and how it is mended, through the API')
    .requiredOption('-f, --file <spec>', 'SPEC in YAML or JSON; - is standard input')
    .addHelpText('after', API_HELP)
    .addHelpText(
      'after',
      '\nWithout an API: pgcloned run --preflight. Nothing is changed in either case.',
    )
    .addHelpText('after', examples('preflight -f clone.yaml'))
    .action(async (_options, command: Command) => {
      const { preflight } = await import('./commands/preflight.ts');
      await preflight(invocation, command.optsWithGlobals());
    });
}

function addHosts(program: Command, invocation: Invocation): void {
  program
    .command('host')
    .description('hosts that receive clones, through the API')
    .addHelpText('after', API_HELP)
    .command('list')
    .description('list the hosts whose workers have registered')
    .addHelpText('after', examples('host list'))
    .action(async (_options, command: Command) => {
      const { listHosts } = await import('./commands/hosts.ts');
      await listHosts(invocation, command.optsWithGlobals());
    });
}

function addTokens(program: Command, invocation: Invocation): void {
  program
    .command('token')
    .description('tokens of the API')
    .command('create')
    .description('make a token: prints it once, and the entry for the configuration')
    .requiredOption('--name <name>', 'who will use it')
    .addOption(
      new Option(
        '--role <role>',
        'viewer: read; operator: also create, change and cancel; admin: all',
      )
        .choices(['viewer', 'operator', 'admin'])
        .default('operator'),
    )
    .addHelpText('after', examples('token create --name provisioner --role operator'))
    .action(async (_options, command: Command) => {
      const { createToken } = await import('./commands/tokens.ts');
      await createToken(invocation, command.optsWithGlobals());
    });
}

/** `pgcloned help TOPIC` works for whatever is a command, so topics are commands that print. */
function addTopics(program: Command): void {
  for (const [name, text] of Object.entries(TOPICS)) {
    program
      .command(name, { hidden: true })
      .configureHelp({ formatHelp: () => `${text()}\n` })
      .action((_options, command: Command) => {
        command.outputHelp();
      });
  }
}

const TOPICS: Readonly<Record<string, () => string>> = {
  'exit-statuses': () =>
    [
      'Exit statuses; one that is not in this table is a failure:',
      ...Object.entries(STATUS_MEANINGS).map(
        ([kind, meaning]) =>
          `  ${String(EXIT_STATUS[kind as keyof typeof EXIT_STATUS]).padStart(3)}  ${meaning}`,
      ),
    ].join('\n'),
  variables: () =>
    [
      'Environment variables; those of the configuration override the file:',
      ...[
        ['PGCLONED_CONFIG', 'the configuration file'],
        ['PGCLONED_URL', 'the API, for clone, preflight and host'],
        ['PGCLONED_TOKEN', 'the token for it'],
        ['PGCLONED_LOG_LEVEL', `one of ${LOG_LEVELS.join(', ')}`],
        ...overrideVariables().map(({ name, key }) => [name, key]),
      ].map(([name = '', meaning = '']) => `  ${name.padEnd(34)}${meaning}`),
      'Lists are comma separated. An empty variable counts as not set; an unknown PGCLONED_* is an error.',
      'pgcloned run also takes PGHOST, PGPORT, PGUSER, PGDATABASE, PGPASSWORD, PGPASSFILE, PGSSLMODE, PGSSLROOTCERT',
      'and SSH_AUTH_SOCK.',
    ].join('\n'),
};

/** Total, so that a new kind of error cannot stay unpublished. */
const STATUS_MEANINGS: Readonly<Record<keyof typeof EXIT_STATUS, string>> = {
  ok: 'done',
  bug: 'a bug in pgcloned',
  usage: 'the options, the SPEC or the configuration are wrong',
  access: 'a password, a key or a token was refused',
  notFound: 'there is no such clone or host',
  conflict: 'something else stands in the way: another clone, a running server, files',
  unavailable: 'the source, its SSH server, the API or Redis does not answer: try again later',
  refused: 'the source, the target or this machine is not fit for a clone; nothing was changed',
  failed: 'the clone was begun and failed',
  cancelled: 'cancelled, by a signal or by somebody else',
};

const REDIS_HELP = `
\`redis\` of the configuration names the Redis of all; without it the one of \`pgcloned up\` on this machine is used.`;

const API_HELP = `
PGCLONED_URL names the API and PGCLONED_TOKEN the token for it. Without them the API of this machine is used, with the
address of its configuration and the token in its state directory.`;

function addProgressOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--progress <how>', 'a bar on a terminal, plain lines in a log, or nothing')
        .choices(['auto', 'bar', 'plain', 'none'])
        .default('auto'),
    )
    .addOption(
      new Option(
        '--progress-interval <seconds>',
        'time between two reports (bar 0.25, else 10)',
      ).argParser(positiveNumber),
    );
}

function examples(...lines: readonly string[]): string {
  return `\nExamples:\n${lines.map((line) => `  pgcloned ${line}`).join('\n')}`;
}

function appendTo(given: string, before: readonly string[] = []): readonly string[] {
  return [...before, given];
}

const NUMBER_HINT = 'See with --help what the option counts.';

function positiveNumber(text: string): number {
  const number = Number(text);
  if (text.trim() !== '' && number > 0 && Number.isFinite(number)) return number;
  throw new CloneError('REQUEST_INVALID', `not a positive number: ${text}`, { hint: NUMBER_HINT });
}

function positiveInteger(text: string): number {
  const number = positiveNumber(text);
  if (Number.isSafeInteger(number)) return number;
  throw new CloneError('REQUEST_INVALID', `not a whole number: ${text}`, { hint: NUMBER_HINT });
}

/** A number, or a word for none at all: commander does not let a parser answer null. */
function orWord<Word extends string>(
  word: Word,
  read: (text: string) => number,
): (text: string) => number | Word {
  return (text) => (text === word ? word : read(text));
}

/** What `parseAsync` threw, as an error to tell; null if it was only the help or the version. */
export function parseErrorOf(error: unknown): unknown {
  if (!(error instanceof CommanderError)) return error;
  if (error.exitCode === 0) return null;
  if (error.code === 'commander.help') {
    return new CloneError('REQUEST_INVALID', 'a command is missing', {
      hint: 'The usage above lists them.',
    });
  }
  return new CloneError('REQUEST_INVALID', error.message.replace(/^error: /, ''), {
    hint: 'See the usage with --help.',
  });
}
