/**
 * Names of files as the source's file system has them: any bytes but NUL and slash, in no encoding in particular.
 *
 * They are carried as strings of `latin1`, one character per byte, so that no byte is lost.
 */
export type ByteName = string;
