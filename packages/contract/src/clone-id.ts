import * as z from 'zod';

export const CloneId = z
  .string()
  .regex(/^[0-9a-f]{32}$/, 'must be 32 hexadecimal digits')
  .meta({ description: 'Id of the clone: the 32 hexadecimal digits of a UUIDv7' });
