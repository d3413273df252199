import sys

from diveparse.commands.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["results", *sys.argv[1:]]))
