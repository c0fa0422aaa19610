"""The service behind `metaspec.jobs`: optimisations in run folders, started, watched and ranked over HTTP."""
