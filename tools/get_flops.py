from mmsimvit.cli.get_flops import main

if __name__ == '__main__':
    main()
