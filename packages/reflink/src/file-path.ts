/** Names may hold any bytes; as a `Buffer` they arrive. */
export type FilePath = string | Buffer;
