/** The version of the product, and of what its processes say to each other. */

export const VERSION = '0.1.0';

/** Raised when a worker could misread what an API of another version wrote, or the reverse. */
export const CONTRACT_VERSION = 1;
