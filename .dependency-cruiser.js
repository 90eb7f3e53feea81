// Imports go downwards only (ARCHITECTURE.md). Each rule says why, so that whoever breaks it learns where the code belongs.

const ENGINE_PARTS = ['packages/postgres', 'packages/rsync', 'packages/reflink', 'packages/ssh'];

/** Who may import whom. A folder that is missing here is free: apps/e2e and packages/testbed. */
const MAY_IMPORT = {
  'apps/cli': [
    'apps/api',
    'apps/worker',
    'packages/engine',
    'packages/queue',
    'packages/client',
    'packages/process',
    'packages/contract',
  ],
  'apps/api': ['packages/queue', 'packages/contract'],
  'apps/worker': ['packages/engine', 'packages/queue', 'packages/process', 'packages/contract'],
  'packages/engine': [...ENGINE_PARTS, 'packages/process', 'packages/contract'],
  ...Object.fromEntries(
    ENGINE_PARTS.map((part) => [part, ['packages/process', 'packages/contract']]),
  ),
  'packages/process': ['packages/contract'],
  'packages/queue': ['packages/process', 'packages/contract'],
  'packages/client': [],
  'packages/contract': [],
};

const REASON = {
  'packages/engine': '`pgcloned run` makes a clone with neither HTTP nor Redis.',
  'packages/queue': 'Redis in one place, and nothing about cloning in it.',
  'packages/client': 'Like any other client it knows the product by openapi.yaml alone.',
  'packages/contract': 'Data and schemas that cross process borders, so no I/O.',
};

const nameOf = (folder) => folder.split('/')[1];

/** @type {import('dependency-cruiser').IConfiguration} */
export default {
  forbidden: [
    ...Object.entries(MAY_IMPORT).map(([folder, below]) => ({
      name: `${nameOf(folder)}-imports-downwards`,
      comment: `${folder} may import ${below.join(', ') || 'none of our packages'}. ${REASON[folder] ?? ''} Move the shared part down, or take it as a parameter.`,
      severity: 'error',
      from: { path: `^${folder}/src/` },
      to: {
        path: ['^(apps|packages)/', '^@pgcloned/'],
        pathNot: [folder, ...below].flatMap((allowed) => [
          `^${allowed}/`,
          `^@pgcloned/${nameOf(allowed)}$`,
        ]),
      },
    })),
    {
      name: 'packages-are-entered-by-index',
      comment: 'A package promises what its src/index.ts lists; everything else in it may change.',
      severity: 'error',
      from: { path: '^((?:apps|packages)/[^/]+)/' },
      to: { path: '^(apps|packages)/[^/]+/src/(?!index\\.ts$)', pathNot: '^$1/' },
    },
    {
      name: 'product-without-tests',
      comment: 'What is shipped must run without its tests.',
      severity: 'error',
      from: { path: '^(apps|packages)/[^/]+/src/', pathNot: '^(apps/e2e|packages/testbed)/' },
      to: { path: ['^(packages/testbed|apps/e2e)/', '/test/'] },
    },
    {
      name: 'no-cycles',
      comment: 'Modules that need each other are one module, or hide a third.',
      severity: 'error',
      from: {},
      to: { circular: true },
    },
    {
      name: 'declared',
      comment: 'The import resolves to nothing: declare it in the package.json of its folder.',
      severity: 'error',
      from: { path: '^(apps|packages)/' },
      to: { couldNotResolve: true },
    },
  ],
  options: {
    doNotFollow: { path: 'node_modules' },
    tsPreCompilationDeps: true,
    enhancedResolveOptions: {
      exportsFields: ['exports'],
      conditionNames: ['import', 'node', 'default'],
    },
  },
};
