#!/usr/bin/env node
// Plain JavaScript that every Node can read, so that one that is too old gets sentences instead of a stack trace.
const NODE_MAJOR_MIN = 24;
const EXIT_STATUS_REFUSED = 7;

if (Number(process.versions.node.split('.')[0]) < NODE_MAJOR_MIN) {
  console.error(
    [
      `pgcloned: Node ${NODE_MAJOR_MIN} or newer is needed, and this is Node ${process.versions.node}`,
      `  hint: Run \`npm run setup\` in the checkout, which brings its own Node for node_modules/.bin/pgcloned, or put a newer Node first in PATH.`,
      `  node: ${process.execPath}`,
    ].join('\n'),
  );
  process.exit(EXIT_STATUS_REFUSED);
}
import('../src/main.ts');
