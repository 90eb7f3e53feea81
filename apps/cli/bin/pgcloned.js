#!/usr/bin/env node
// Plain JavaScript, so that a Node that is too old gets a sentence instead of a stack trace.
const NODE_MAJOR_MIN = 24;
const major = Number(process.versions.node.split('.')[0]);
if (major < NODE_MAJOR_MIN) {
  console.error(
    `pgcloned needs Node ${NODE_MAJOR_MIN} or newer, this is ${process.versions.node}. Run \`npm run setup\` in the checkout, or put a newer node first in PATH.`,
  );
  process.exit(69);
}
await import('../src/main.ts');
