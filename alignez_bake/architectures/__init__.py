"""Where the sites of each architecture lie: data files, proved against live models in the tests."""
