"""Where images come from: folders, archives, the photographs that need no download; decoded ahead of use."""
