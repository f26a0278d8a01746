from mmsimvit.cli.swap import main

if __name__ == '__main__':
    main()
