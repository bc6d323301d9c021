"""Reading data, and the small sets that come with the package: origin and licence are in each folder's README.md."""
