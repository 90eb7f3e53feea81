/** `pgcloned token`: makes tokens of the API. A token is shown once, since only its hash is ever configured. */
import { type Role, Token } from '@pgcloned/contract';
import type { GlobalOptions, Invocation } from '../invocation.ts';
import { mistakesError, mistakesOf } from '../located-yaml.ts';
import { print, printJson } from '../output.ts';
import { hashOfToken, makeToken } from '../token.ts';

export async function createToken(
  _invocation: Invocation,
  { name, role, json }: GlobalOptions & { readonly name: string; readonly role: Role },
): Promise<void> {
  const token = makeToken();
  const entry = { name, sha256: hashOfToken(token), role };
  const checked = Token.safeParse(entry);
  if (!checked.success) {
    throw mistakesError('REQUEST_INVALID', mistakesOf(checked.error), {
      locate: () => 'option --name',
      hint: 'A name has 1 to 63 characters.',
    });
  }
  if (json === true) printJson({ token, entry });
  else {
    print(`token: ${token}

It is not kept anywhere: store it now. The entry for the configuration of every API process:

api:
  tokens:
    - {name: ${JSON.stringify(name)}, sha256: ${entry.sha256}, role: ${role}}`);
  }
}
