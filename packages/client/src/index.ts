/** A client of the HTTP API, typed by its OpenAPI document. */
export { ApiError } from './api-error.ts';
export { type ApiClient, answerOf, connectApi } from './connect-api.ts';
export type { Clone, CloneEvent, CloneSpec, Host, LogLine, Problem } from './types.ts';
