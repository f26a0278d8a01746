from mmsimvit.cli.get_memory import main

if __name__ == '__main__':
    main()
