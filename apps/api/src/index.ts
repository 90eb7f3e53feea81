/** The REST API: listens, answers from the store, and describes itself. */
export { openapiYaml } from './openapi-yaml.ts';
export { type RunningApi, type StartApiOptions, startApi } from './start-api.ts';
